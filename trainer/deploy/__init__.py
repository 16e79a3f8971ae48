"""An exported model as others deploy it: a repository of the Hugging Face Hub, Triton, a container, Kubernetes."""
