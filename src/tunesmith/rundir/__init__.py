"""What happened: the run folder, its files, written whole or not at all, and its hashed checkpoints."""

from tunesmith.rundir.checkpoints import Checkpoints
from tunesmith.rundir.files import (
    refuse_where_we_are,
    require_folder,
    require_free,
    sync_folder,
    write_atomically,
)
from tunesmith.rundir.folder import RunFolder
from tunesmith.rundir.metrics import MetricsLog
from tunesmith.rundir.seal import (
    CARD_NAME,
    SEAL_NAME,
    canonical_seal,
    check_seal,
    read_seal,
    read_sealed,
    seal,
    write_sealed_folder,
)
from tunesmith.rundir.staging import put_in_place, staging_folder
from tunesmith.rundir.verify import Verification, verify_path

__all__ = [
    "CARD_NAME",
    "SEAL_NAME",
    "Checkpoints",
    "MetricsLog",
    "RunFolder",
    "Verification",
    "canonical_seal",
    "check_seal",
    "put_in_place",
    "read_seal",
    "read_sealed",
    "refuse_where_we_are",
    "require_folder",
    "require_free",
    "seal",
    "staging_folder",
    "sync_folder",
    "verify_path",
    "write_atomically",
    "write_sealed_folder",
]
