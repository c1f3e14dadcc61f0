"""The service: pages, REST API and events (FastAPI); knows the hub by HTTP only."""
