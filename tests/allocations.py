"""Memory that PyTorch's allocator hands out while a call runs, inside operators, too."""

from torch.profiler import ProfilerActivity, profile


def largest_allocation(call):
    """Bytes of the largest piece of memory that tensors on the CPU were given."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    sizes = [event.nbytes() for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert sizes, "the profiler saw no memory"
    return max(sizes)
