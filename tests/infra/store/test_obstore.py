"""Google Cloud and Azure, as far as they can be tested without them: addresses, errors, Google's XML API."""

from __future__ import annotations

import json

import pytest

from infra.settings.groups import WireSettings
from infra.store.obstore import ObstoreStore, first_line
from infra.store.opening import open_store
from tests.fake_s3 import cell_etag, fake_bucket
from validation.errors import ObjectMissing, SettingsError, StoreUnreachable

ONCE = WireSettings(retries=0, silence_seconds=2)


@pytest.mark.parametrize("uri", ["gs://", "gs:///x", "az://", "az:///container"])
def test_an_address_without_a_bucket_is_refused(uri: str) -> None:
    with pytest.raises(SettingsError, match="names no bucket") as caught:
        open_store(uri)
    assert "gs://BUCKET" in caught.value.hint


def test_azure_without_an_account_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(SettingsError, match="az://cells/prefix") as caught:
        open_store("az://cells/prefix")
    assert "AZURE_STORAGE" in caught.value.hint


@pytest.mark.server
def test_google_clouds_own_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """The XML API of Google Cloud Storage is S3's in listing, reading and writing; signing in is left out here."""
    with fake_bucket(2_500) as bucket:
        key = {"gcs_base_url": bucket.url, "disable_oauth": True, "client_email": "", "private_key": ""}
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps({**key, "private_key_id": ""}))
        store = open_store("gs://cells", wire=ONCE)
        assert isinstance(store, ObstoreStore)
        listed = list(store.list("labeled/"))
        assert len(listed) == 2_500
        assert {info.etag for info in listed} == {cell_etag(number) for number in range(2_500)}
        store.put("retraining/x.json", b"{}")
        fetched = store.fetch("retraining/x.json")
        assert fetched.data == b"{}"
        assert store.stat("retraining/x.json") is not None
        with pytest.raises(ObjectMissing):
            store.get("retraining/y.json")
    with pytest.raises(StoreUnreachable, match="cannot reach gs://cells"):
        store.check()


def test_a_message_never_shows_a_signature() -> None:
    error = ValueError("GET https://x.blob.core.windows.net/c/k?sv=2024&sig=SECRET%3D failed\nmore")
    assert first_line(error) == "GET https://x.blob.core.windows.net/c/k?... failed"
