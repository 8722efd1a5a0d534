import jax
import pytest

from jaxpretrain.devices.compilation import keep_compiled


@pytest.mark.parametrize("chosen", [None, "/elsewhere"])
def test_programs_are_kept_below_the_cache_folder_unless_the_user_says_where(
    chosen, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    monkeypatch.setenv("JAXPRETRAIN_CACHE", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if chosen:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", chosen)
    keep_compiled()
    folder = {} if chosen else {"jax_compilation_cache_dir": str(tmp_path / "xla")}
    assert changed == folder | {"jax_persistent_cache_min_compile_time_secs": 0.2}
