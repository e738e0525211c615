"""How fast a graph could run on a device at best: FLOPs, bytes, and the roofline that they meet."""
