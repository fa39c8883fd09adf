"""Where sessions and events are kept. `open_store` picks the backend the settings name."""

from infra.settings import Settings
from infra.store.base import (
    NotYours,
    Store,
    StoreError,
    StoreMisconfigured,
    StoreRefused,
    StoreUnavailable,
)

__all__ = ["NotYours", "Store", "StoreError", "StoreMisconfigured", "StoreRefused", "StoreUnavailable", "open_store"]


async def open_store(settings: Settings) -> Store:
    """Open the store these settings name, migrated and ready.

    Raises:
        StoreMisconfigured: it cannot be used as it is; the message says what to do.
    """
    if settings.supabase_url:
        from infra.store.supabase import SupabaseStore

        return await SupabaseStore.open(settings)
    from infra.store.sqlite import SqliteStore

    return await SqliteStore.open(settings.data_dir / "realtime.db")
