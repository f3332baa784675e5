"""The HTTP library that huggingface_hub speaks with: httpx, or what took its place since."""

try:
    from huggingface_hub.utils import httpx
except ImportError:  # huggingface_hub before 2
    import httpx

__all__ = ["httpx"]
