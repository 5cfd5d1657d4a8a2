"""What a tuner may choose from: settings on a grid, who is whose neighbour, and which of equals is preferred."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

Value = int | str


@dataclass(frozen=True, order=True)
class Settings:
    """One point of the grid: names as in bench/knobs.py, and their values."""

    items: tuple[tuple[str, Value], ...]

    @classmethod
    def of(cls, **values: Value) -> Settings:
        return cls(tuple(values.items()))

    @property
    def env(self) -> dict[str, Value]:
        return dict(self.items)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.items)


@dataclass(frozen=True)
class Axis:
    """One knob and the values to try, numbers in rising order; `needs_restart`: changing it costs a restart."""

    name: str
    values: tuple[Value, ...]
    needs_restart: bool = False

    @property
    def is_ordered(self) -> bool:
        return all(isinstance(value, int) for value in self.values)


@dataclass(frozen=True)
class Space:
    """The grid of all axes' values, without the settings that cannot be (`without`)."""

    axes: tuple[Axis, ...]
    without: frozenset[Settings] = frozenset()

    @cached_property
    def settings(self) -> tuple[Settings, ...]:
        names = [axis.name for axis in self.axes]
        points = product(*(axis.values for axis in self.axes))
        every = (Settings(tuple(zip(names, point, strict=True))) for point in points)
        return tuple(settings for settings in every if settings not in self.without)

    @cached_property
    def _members(self) -> frozenset[Settings]:
        return frozenset(self.settings)

    def __contains__(self, settings: object) -> bool:
        return settings in self._members

    def group(self, settings: Settings) -> tuple[Value, ...]:
        """The values that only a restart changes: settings of one group are measured without any."""
        env = settings.env
        return tuple(env[axis.name] for axis in self.axes if axis.needs_restart)

    def starts(self, group_of: Settings) -> list[Settings]:
        """The corners and the middle of the grid of what needs no restart, in the group of these settings."""
        env = group_of.env
        fixed: list[tuple[Value, ...]] = [(env[axis.name],) for axis in self.axes]
        corners = [
            own if axis.needs_restart else tuple(dict.fromkeys((axis.values[0], axis.values[-1])))
            for axis, own in zip(self.axes, fixed, strict=True)
        ]
        middle = [
            own if axis.needs_restart else (axis.values[len(axis.values) // 2],)
            for axis, own in zip(self.axes, fixed, strict=True)
        ]
        return [settings for settings in (*self._points(middle), *self._points(corners)) if settings in self._members]

    def neighbours(self, settings: Settings) -> list[Settings]:
        """The settings one step away, diagonally too, where no restart is needed; and one restart's step away.

        Diagonal steps, because along a ridge (more threads pay only with a larger batch) every straight step goes down.
        """
        env = settings.env
        near = [_near(axis, env[axis.name]) for axis in self.axes]
        own = [(env[axis.name],) for axis in self.axes]
        inside = self._points(
            [one if axis.needs_restart else some for axis, one, some in zip(self.axes, own, near, strict=True)]
        )
        across = [
            point
            for k, axis in enumerate(self.axes)
            if axis.needs_restart
            for point in self._points([*own[:k], near[k], *own[k + 1 :]])
        ]
        return [point for point in (*inside, *across) if point != settings and point in self._members]

    def _points(self, values: Sequence[tuple[Value, ...]]) -> Iterator[Settings]:
        names = [axis.name for axis in self.axes]
        return (Settings(tuple(zip(names, point, strict=True))) for point in product(*values))


def _near(axis: Axis, value: Value) -> tuple[Value, ...]:
    """The value and those beside it; words have no order, so all are beside each other."""
    if not axis.is_ordered:
        return axis.values
    at = axis.values.index(value)
    return axis.values[max(0, at - 1) : at + 2]


def preference(settings: Settings, memory_mib: Mapping[Settings, float]) -> tuple[float, ...]:
    """Of equals the one with the least of this: larger context, then fewer threads, then less memory."""
    env = settings.env
    context, threads = env.get("N_CTX", 0), env.get("N_THREADS", 0)
    assert isinstance(context, int)
    assert isinstance(threads, int)
    return -context, threads, memory_mib.get(settings, 0.0)
