"""Transfer of a student to dense prediction on its feature maps: what detection and segmentation share."""
