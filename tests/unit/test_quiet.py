"""What orbax's event loop says, and what it keeps to itself."""

import asyncio
import gc

from sparse_mu.quiet import quiet


def failed_futures(loop, count):
    for number in range(count):
        loop.create_future().set_exception(ValueError(f"array {number}"))
    gc.collect()


def test_errors_after_the_first_are_not_logged(caplog):
    with quiet():
        loop = asyncio.new_event_loop()
    failed_futures(loop, 3)
    loop.close()
    assert not caplog.records


def test_an_ordinary_loop_would_log_them(caplog):
    loop = asyncio.new_event_loop()
    failed_futures(loop, 3)
    loop.close()
    assert len(caplog.records) == 3


def test_other_trouble_of_the_loop_is_still_told(caplog):
    with quiet():
        loop = asyncio.new_event_loop()
    loop.call_soon(lambda: 1 / 0)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert "ZeroDivisionError" in caplog.text


def test_news_of_a_closed_loop_pass():
    with quiet():
        loop = asyncio.new_event_loop()
    loop.close()
    assert loop.call_soon_threadsafe(print) is not None
