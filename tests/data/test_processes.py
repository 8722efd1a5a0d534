import subprocess
import sys
import textwrap

from jaxpretrain.data.processes import end_with_parent


def test_a_process_without_a_parent_goes_on():
    end_with_parent()


def test_a_process_ends_when_its_parent_is_killed(tmp_path):
    """The child holds the pipe open for as long as it lives."""
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
            import multiprocessing, os, signal, time
            from jaxpretrain.data.processes import end_with_parent

            def work(ready):
                end_with_parent()
                ready.set()
                time.sleep(600)

            if __name__ == "__main__":
                context = multiprocessing.get_context("spawn")
                ready = context.Event()
                context.Process(target=work, args=(ready,)).start()
                assert ready.wait(60)
                os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    ended = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, timeout=90)
    assert ended.returncode == -9
