"""Which ranks share a lane of a report's picture."""

from hpc_launch.inspection import timeline_lanes
from hpc_launch.inspection.timeline_lanes import LaneBar, LaneEnd, RankTrack
from tests.support import lines_mention

ATTEMPTS = 3


def track(rank: int, *ends: LaneEnd, words: str = "", delay: float = 0.0) -> RankTrack:
    """A rank that ended so in one attempt after another, of a minute each."""
    bars = tuple(
        LaneBar(number, 60.0 * number, 60.0 * number + 58 + delay, end, words or end.value)
        for number, end in enumerate(ends)
    )
    return RankTrack(rank, (f"gpu{rank // 8:03d}",), bars)


def shape(found: tuple[timeline_lanes.TimelineLane, ...]) -> list[tuple[int, ...]]:
    return [lane.ranks for lane in found]


def test_few_ranks_have_a_lane_each() -> None:
    """Nobody wants to see eight ranks as one."""
    found = timeline_lanes.fold_lanes([track(rank, LaneEnd.FINISHED) for rank in range(8)], 1.0)

    assert shape(found) == [(rank,) for rank in range(8)]


def test_many_ranks_that_did_the_same_share_one() -> None:
    """Of 1,024 ranks the one that failed stands out."""
    tracks = [
        track(rank, LaneEnd.CAUSE if rank == 17 else LaneEnd.STOPPED, LaneEnd.FINISHED, delay=rank / 10_000)
        for rank in range(1024)
    ]
    found = timeline_lanes.fold_lanes(tracks, 1.0)

    assert shape(found) == [tuple(rank for rank in range(1024) if rank != 17), (17,)]
    assert [bar.kind for bar in found[1].bars] == [LaneEnd.CAUSE, LaneEnd.FINISHED]


def test_ranks_that_ended_at_other_times_do_not() -> None:
    """A rank that left early is seen."""
    tracks = [track(rank, LaneEnd.FINISHED, delay=-30 if rank == 99 else 0) for rank in range(128)]

    assert shape(timeline_lanes.fold_lanes(tracks, 1.0)) == [tuple(rank for rank in range(128) if rank != 99), (99,)]


def test_how_somebody_follows_makes_no_difference() -> None:
    """Whether a rank lost its connection or was stopped first is chance; the lane says how many did which."""
    tracks = [
        track(rank, LaneEnd.CAUSE if rank == 0 else (LaneEnd.FOLLOWED, LaneEnd.STOPPED)[rank % 3 == 0])
        for rank in range(100)
    ]
    found = timeline_lanes.fold_lanes(tracks, 1.0)

    assert shape(found) == [(0,), tuple(range(1, 100))]
    assert found[1].bars[0].kind is LaneEnd.FOLLOWED
    assert lines_mention(
        found[1].bars[0].words.split(",")[-2:], f"66 {LaneEnd.FOLLOWED.value}", f"33 {LaneEnd.STOPPED.value}"
    )


def test_a_picture_does_not_grow_without_end() -> None:
    """Where all ranks differ in everything, those that were to blame are shown, as far as there is room."""
    tracks = [
        track(
            rank,
            *(
                LaneEnd.CAUSE if (rank >> at) & 1 and at == 9 else list(LaneEnd)[(rank >> at) % 5 + 1]
                for at in range(10)
            ),
        )
        for rank in range(1024)
    ]
    found = timeline_lanes.fold_lanes(tracks, 1.0)

    assert len(found) == 48
    assert sorted(rank for lane in found for rank in lane.ranks) == list(range(1024))


def test_a_cause_is_never_hidden() -> None:
    """In a lane of many that were to blame and many that were not, the bar says that there was a cause."""
    tracks = [track(rank, LaneEnd.CAUSE, words=f"error {rank}") for rank in range(100)]
    tracks += [track(rank, LaneEnd.STOPPED) for rank in range(100, 400)]
    found = timeline_lanes.fold_lanes(tracks, 1.0)

    assert [lane.bars[0].kind for lane in found] == [LaneEnd.CAUSE, LaneEnd.STOPPED]
    assert "99 other ways" in found[0].bars[0].words
