"""The network: 3D trunk, dynamic motion filters, classifier. Torch and pytorchvideo only."""
