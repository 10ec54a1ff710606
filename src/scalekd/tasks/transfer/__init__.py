"""What a student is worth elsewhere: dense prediction on its feature maps."""
