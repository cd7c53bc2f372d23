"""How the actors of an application are named, which is how API processes find them."""

NAMESPACE = "caravan"  # of Ray


def actor_name(application: str, replica: str) -> str:
    """Return the name of the actor of a replica."""
    return f"{application}#{replica}"


def replica_of(application: str, name: str) -> str | None:
    """Return the replica of an actor's name, None if it belongs to another application."""
    prefix, _, replica = name.rpartition("#")
    return replica if prefix == application else None
