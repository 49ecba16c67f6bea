"""Rate-distortion optimized quantization of a whole model: `calibrator` tells the story, a file a chapter."""
