"""What leaves the run folder: the adapter's folder with its card and generation settings."""

from tunesmith.share.adapter import write_adapter_folder

__all__ = ["write_adapter_folder"]
