"""Memory by what torch's allocator handed out, for the resident size tells more of the allocator than of the work."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def allocated(work: Callable[[], None]) -> int:
    """Largest sum of what the CPU's allocator handed out, as the profiler saw it."""
    with profile(profile_memory=True, activities=[ProfilerActivity.CPU]) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most
