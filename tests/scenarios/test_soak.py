"""The soak of `make prove`, in small: after a quarter of a minute of trouble everything is back where it was."""

import pytest

from tests.prove import soak

SOAK_S = 15.0  # after a warm-up and crowds


@pytest.mark.slow
@pytest.mark.prove
async def test_after_trouble_everything_is_back_where_it_was(tmp_path):
    """Cuts, stalls, errors, hang-ups, slow readers, servers killed and frozen; then quiet, and nothing is left."""
    done = await soak.soak(tmp_path, SOAK_S)

    not_back = [what for what, back in soak.leaks(done).items() if not back]
    assert not_back == [soak.NO_LINE], done["wrong"][:5]  # it was too short for that
    assert done["asked_in_all"] > 200
    assert len(done["endings"]) > 2
    assert done["kills"] + done["freezes"] > 2
