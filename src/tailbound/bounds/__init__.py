"""From keys to sound statements about logits. Every rounding on this floor goes outward and its name says so."""
