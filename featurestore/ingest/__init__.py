"""The one write path: gate, sequence, history, online. Whatever brings rows in, they pass here in this order."""
