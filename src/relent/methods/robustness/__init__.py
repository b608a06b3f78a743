"""Methods that change what training is robust to: flat minima and adversarial inputs."""
