"""Copy the next batch while the chip computes on this one: one stream against two.

``bringup run --cuda --chip t4 examples/overlap.py``: the times are the chip's, and the report's timeline shows
both streams.
"""

import torch

BATCHES, ROWS, WIDTH = 12, 8192, 1024


def work(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    for weight in weights:
        x = torch.relu(x @ weight)
    return x.sum()


def in_one_stream(batches: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([work(batch.to("cuda", non_blocking=True), weights) for batch in batches])


def in_two_streams(batches: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    copies, computes = torch.cuda.Stream(), torch.cuda.current_stream()
    results = []

    def upload(batch: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        with torch.cuda.stream(copies):
            x = batch.to("cuda", non_blocking=True)
            return x, copies.record_event()

    following = upload(batches[0])
    for place in range(len(batches)):
        x, ready = following
        if place + 1 < len(batches):
            following = upload(batches[place + 1])
        computes.wait_event(ready)
        x.record_stream(computes)  # its memory is not for the next copy before this one is done
        results.append(work(x, weights))
    return torch.stack(results)


def main() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(WIDTH, WIDTH, device="cuda") / WIDTH**0.5 for _ in range(2)]
    batches = [torch.randn(ROWS, WIDTH).pin_memory() for _ in range(BATCHES)]
    times, results = {}, []
    for function in (in_one_stream, in_two_streams):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        results.append(function(batches, weights))
        end.record()
        torch.cuda.synchronize()
        times[function.__name__] = start.elapsed_time(end)
        print(f"{function.__name__}: {times[function.__name__]:.1f} ms")
    assert torch.equal(*results)
    print(f"overlap hides {1 - times['in_two_streams'] / times['in_one_stream']:.0%}")


if __name__ == "__main__":
    main()
