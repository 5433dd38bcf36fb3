"""The Hub, through `huggingface_hub` with the user's login, cache and endpoint: patient, bounded, checked."""

from tunesmith.hub.calls import call
from tunesmith.hub.download import HubId, Snapshot, download, is_hub_id, parse_hub_id

__all__ = ["HubId", "Snapshot", "call", "download", "is_hub_id", "parse_hub_id"]
