"""scripts/install.py peers: a gateway that cannot be had is left out with a word, and the others are there."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_gateway_that_cannot_be_had_is_left_out_with_a_word(tmp_path, monkeypatch, capsys):
    """Each has a folder of its own; where one fails, nothing is raised, and its log is named."""
    spec = importlib.util.spec_from_file_location("install", ROOT / "scripts" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    made = []

    def provide(wanted: str, path: Path) -> None:
        if "smg" in wanted:
            raise install.InstallFailed("smg: gateway failed. The end of /x/install-smg.log:\nERROR: no such version")
        made.append(path)

    monkeypatch.setattr(install, "CACHE", tmp_path)
    monkeypatch.setattr(install, "provide_peer", provide)
    monkeypatch.setattr(install, "provide_nginx", made.append)

    install.install_peers()

    assert [path.relative_to(tmp_path).as_posix() for path in made] == [
        "peers/litellm", "peers/vllm-router", "peers/nginx",
    ]  # fmt: skip
    assert capsys.readouterr().out == (
        "smg is left out of what is measured: smg: gateway failed; see /x/install-smg.log\n"
    )
