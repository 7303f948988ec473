"""Keys and notes as other implementations read them, and every malformed one refused."""

from __future__ import annotations

import base64
import os
import stat
import threading
from pathlib import Path

import pytest

from state import keys
from state.errors import InputError
from state.keys import Checkpoint, NoteError, Signer, Verifier

# Source: the documentation of Go's golang.org/x/mod/sumdb/note.
SKEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
SIGNATURE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
NOTE = f"{TEXT}\n{SIGNATURE}"
ROOT = base64.b64encode(bytes(32)).decode()


def key_file(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)
    return path


def test_the_known_key_signs_the_known_note(tmp_path: Path) -> None:
    signer = keys.load(key_file(tmp_path, SKEY + "\n"))

    assert signer.vkey == VKEY
    assert signer.sign(TEXT) == NOTE
    assert Verifier(VKEY).open(NOTE) == TEXT


def test_signatures_of_other_keys_do_not_matter() -> None:
    other = Signer("somebody.else", bytes(32)).sign(TEXT).removeprefix(TEXT + "\n")

    assert Verifier(VKEY).open(f"{TEXT}\n{other}{SIGNATURE}") == TEXT
    with pytest.raises(NoteError, match="not signed by PeterNeumann"):
        Verifier(VKEY).open(f"{TEXT}\n{other}")


@pytest.mark.parametrize(
    "note",
    [
        pytest.param(NOTE.replace("answer", "Answer"), id="text-changed"),
        pytest.param(NOTE.replace("x08go/ZJ", "x08go/ZK"), id="signature-changed"),
        pytest.param(NOTE.replace("x08go/ZJ", "AAAAAAZJ"), id="other-key-id"),
        pytest.param(NOTE.replace("x08go/ZJ", "!"), id="not-base64"),
        pytest.param("— PeterNeumann x08go/Y=".join(NOTE.rsplit(SIGNATURE[:-1], 1)), id="short-signature"),
        pytest.param(NOTE.replace("— ", "- "), id="hyphen-instead-of-dash"),
        pytest.param(NOTE[:-1], id="no-last-newline"),
        pytest.param(TEXT, id="no-signature"),
        pytest.param("", id="empty"),
    ],
)
def test_a_note_that_was_changed_is_refused(note: str) -> None:
    with pytest.raises(NoteError):
        Verifier(VKEY).open(note)


@pytest.mark.parametrize(
    "vkey",
    ["", "x", "PeterNeumann+c74f20a4+" + VKEY.rsplit("+", 1)[1], VKEY.replace("Peter", "Piter"), VKEY[:-4], "a+b+AA=="],
)
def test_a_malformed_public_key_is_refused(vkey: str) -> None:
    with pytest.raises(NoteError):
        Verifier(vkey)


def test_a_checkpoint_is_the_text_of_tlog_checkpoint() -> None:
    checkpoint = Checkpoint(origin="example.com/log", size=7, root=bytes(32))

    assert checkpoint.text == f"example.com/log\n7\n{ROOT}\n"
    assert Checkpoint.parse(checkpoint.text) == checkpoint
    assert Checkpoint.parse(checkpoint.text + "an extension\n") == checkpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "o\n7\n",
        f"o\n-1\n{ROOT}\n",
        f"o\n07\n{ROOT}\n",
        f"o\n٧\n{ROOT}\n",
        "o\n7\nAAAA\n",
        "o\n7\n?\n",
        f"\n7\n{ROOT}\n",
        f"o\n7\n{ROOT}",
    ],
)
def test_a_malformed_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        Checkpoint.parse(text)


def test_a_checkpoint_of_another_log_is_refused() -> None:
    signer = Signer("example.com/log", bytes(32))
    note = signer.sign(Checkpoint(origin="example.com/other", size=7, root=bytes(32)).text)

    with pytest.raises(NoteError, match=r"of log 'example.com/other', not of 'example.com/log'"):
        signer.verifier().checkpoint(note)


def test_a_new_key_is_kept_to_its_owner_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "log_ed25519"

    made = keys.load_or_create(path, "steadyhand.test/log")

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.load_or_create(path, "another name").vkey == made.vkey
    assert [item.name for item in path.parent.iterdir()] == ["log_ed25519"]
    assert keys.load_or_create(tmp_path / "other", "steadyhand.test/log").vkey != made.vkey


def test_of_two_first_starts_both_get_the_same_key(tmp_path: Path) -> None:
    start = threading.Barrier(6)
    found: list[str] = []

    def work() -> None:
        start.wait()
        found.append(keys.load_or_create(tmp_path / "key", "steadyhand.test/log").vkey)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 6
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    "content",
    ["", "garbage", "PRIVATE+KEY+a+b", SKEY[:-4], SKEY.replace("c74f20a3", "c74f20a4"), SKEY.replace("AYEK", "????")],
)
def test_a_damaged_key_file_is_named_with_a_remedy(tmp_path: Path, content: str) -> None:
    path = key_file(tmp_path, content)

    with pytest.raises(InputError, match="key is not a signing key") as caught:
        keys.load_or_create(path, "steadyhand.test/log")
    assert caught.value.remedy == "Restore it from a backup"
    assert path.read_text() == content


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = key_file(tmp_path, SKEY)
    path.chmod(0o640)

    with pytest.raises(InputError, match=r"can be read by others \(mode 0640\)") as caught:
        keys.load(path)
    assert caught.value.remedy == f"chmod 600 {path}"


def test_a_key_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = key_file(tmp_path, "")
    path.write_bytes(os.urandom(8) + b"\xff\xfe")

    with pytest.raises(InputError, match="cannot be read as a signing key"):
        keys.load(path)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb"])
def test_a_name_that_notes_cannot_carry_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        keys.load_or_create(tmp_path / "key", name)
    assert not (tmp_path / "key").exists()
