"""The forecast network of FuXi-ENS (arXiv 2405.05925): two backbones behind one interface, latents, perturbations."""
