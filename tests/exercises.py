"""What the exercises of every lesson are held to: right solutions pass in any form, wrong ones are told why, open ones are "not yet"."""
import pytest


def held_to(right, wrong):
    """Three tests, to be given names that begin with test_.

    right    {check: functions it must accept}, or pairs of these
    wrong    {check: functions it must reject, each alone or with words that it must say}, or triples of these
    """
    accepted = _pairs(right)
    rejected = [(check, *(given if isinstance(given, tuple) else (given, ""))) for check, *rest in _pairs(wrong)
                for given in ([tuple(rest)] if len(rest) > 1 else rest)]

    @pytest.mark.parametrize("check, candidate", accepted)
    def passes(check, candidate, capsys):
        assert check(candidate)
        assert capsys.readouterr().out.startswith("right: ")

    @pytest.mark.parametrize("check, candidate, says", rejected)
    def is_told_why(check, candidate, says, capsys):
        assert not check(candidate)
        told = capsys.readouterr().out
        assert told.startswith("not yet" if "raised" in says else "not right yet") and says in told

    @pytest.mark.parametrize("check", dict(accepted))
    def is_not_yet(check, capsys):
        for stub in (lambda *given, **named: None, lambda *given, **named: ..., None, ...):
            assert not check(stub)
            assert capsys.readouterr().out.startswith("not yet")

    assert {check for check, *_ in rejected} == set(dict(accepted))
    return passes, is_told_why, is_not_yet


def _pairs(table):
    """{check: several} or [(check, one), ...] -> [(check, one), ...]"""
    if not isinstance(table, dict):
        return table
    return [(check, one) for check, several in table.items() for one in (several.items() if isinstance(several, dict) else several)]
