"""What a text says of a scene, and how much of that is true of another scene, or of what is seen in a picture."""

from dataclasses import dataclass, fields

from .scene import Group, Scene


@dataclass(frozen=True)
class NamedGroup:
    """A group as far as it was named; None is what was left open."""

    kind: str
    colour: str | None = None
    size: str | None = None
    place: str | None = None
    count: int | None = None

    def named(self) -> dict[str, object]:
        """Attribute -> value, of those that were named."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


@dataclass(frozen=True)
class Named:
    """The attributes of a scene as far as they were named, with the names that they have in `Scene`."""

    sky: str | None = None
    clouds: bool | None = None
    light: str | None = None
    light_place: str | None = None
    land: str | None = None
    land_colour: str | None = None
    ground: str | None = None
    water: str | None = None
    groups: tuple[NamedGroup, ...] = ()

    @classmethod
    def of(cls, scene: Scene) -> "Named":
        """All that can be said of a scene. Clouds are left open where the sky is one cloud."""
        values = {field.name: getattr(scene, field.name) for field in fields(cls)}
        values["clouds"] = None if scene.sky == "overcast" else scene.clouds
        values["groups"] = tuple(NamedGroup(g.kind, g.colour, g.size, g.place, g.count) for g in scene.groups)
        return cls(**values)

    def backdrop(self) -> dict[str, object]:
        """Attribute -> value, of those that were named, groups aside."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "groups"}
        return {name: value for name, value in values.items() if value is not None}


def agreement(named: Named, seen: "Scene | Named") -> list[tuple[str, bool]]:
    """Each named attribute, such as "sky" or "house colour", with whether what is seen has it.

    A named group is compared with the most similar group of its kind that no other named group was compared with. If
    there is none of its kind, nothing that was said of it holds.
    """
    verdicts = [(name, getattr(seen, name) == value) for name, value in named.backdrop().items()]
    left = list(seen.groups)
    for group in sorted(named.groups, key=lambda group: -len(group.named())):
        rivals = [other for other in left if other.kind == group.kind]
        best = max(rivals, key=lambda other: _matches(group, other), default=None)
        if best is not None:
            left.remove(best)
        verdicts += [
            (f"{group.kind} {name}", best is not None and getattr(best, name) == value)
            for name, value in group.named().items()
        ]
    return verdicts


def _matches(named: NamedGroup, seen: "Group | NamedGroup") -> int:
    return sum(getattr(seen, name) == value for name, value in named.named().items())
