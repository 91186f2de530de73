from crossdistill.errors import LISTED_CHARACTERS, nearest


def test_a_long_list_of_names_is_counted_and_the_nearest_stand_first() -> None:
    names = [f"column_{number:04}" for number in range(2000)]
    said = nearest("column_1999x", names)
    assert said.startswith("did you mean 'column_1999'")
    listed = said.partition("known: ")[2]
    assert len(listed) < LISTED_CHARACTERS + 20
    assert f"and {2000 - listed.count('column_'):,} more" in listed
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert nearest("zzz", []) == "known: (none)"
    assert nearest("zzz", ["n" * 1000]) == f"known: {'n' * 1000}"
