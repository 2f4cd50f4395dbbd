"""The server in its process: garbage collection once the models are in."""

import gc

from service.api.server import settle


def test_what_a_start_made_is_left_out_of_collections_and_the_rest_is_collected():
    thresholds, enabled = gc.get_threshold(), gc.isenabled()
    gc.disable()
    try:
        settle()
        assert gc.isenabled() and gc.get_freeze_count() > 1000
        gc.collect()
        assert len(gc.get_objects()) < 1000
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
        (gc.enable if enabled else gc.disable)()
