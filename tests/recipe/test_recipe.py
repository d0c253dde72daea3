"""Recipes: ordered rules, first match wins."""

import json

import pytest

from edgesparse.errors import RecipeError
from edgesparse.model import TensorInfo, TensorKind
from edgesparse.pattern import Pattern
from edgesparse.recipe import ADJUSTABLE, Recipe, Rule


def tensor(name="layers.0.up", kind=TensorKind.LINEAR, aliases=()):
    return TensorInfo(
        name=name, kind=kind, shape=(8, 8), dtype="float32", aliases=aliases, compressible=True
    )


def recipe_file(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return Recipe.from_toml(path)


class TestMatching:
    def test_first_match_wins(self):
        recipe = Recipe((Rule(name="*.up", bits=8), Rule(kind=TensorKind.LINEAR, bits=4)))
        assert recipe.rule_for(tensor("layers.0.up")).bits == 8
        assert recipe.rule_for(tensor("layers.0.down")).bits == 4

    def test_what_no_rule_matches_stays_as_it_is(self):
        recipe = Recipe((Rule(kind=TensorKind.LINEAR, bits=4),))
        assert recipe.rule_for(tensor(kind=TensorKind.NORM)) is None
        assert Recipe().rule_for(tensor()) is None

    def test_kind_and_name_must_both_match(self):
        rule = Rule(kind=TensorKind.CONV, name="*.up")
        assert not rule.matches(tensor("a.up", TensorKind.LINEAR))
        assert not rule.matches(tensor("a.down", TensorKind.CONV))
        assert rule.matches(tensor("a.up", TensorKind.CONV))

    def test_a_kind_may_be_given_as_its_word(self):
        assert Rule(kind="conv") == Rule(kind=TensorKind.CONV)
        assert Recipe((Rule(kind="conv"),)).to_json()[0]["match"] == {"kind": "conv"}
        with pytest.raises(RecipeError, match="kind is 'cnov', expected one of linear"):
            Rule(kind="cnov")

    def test_a_glob_matches_the_whole_name_and_a_regular_expression_any_part(self):
        assert not Rule(name="up").matches(tensor("layers.0.up"))
        assert Rule(name="re:up").matches(tensor("layers.0.up"))
        assert not Rule(name="re:up$").matches(tensor("layers.0.up.weight"))

    def test_a_glob_is_case_sensitive(self):
        assert not Rule(name="*.UP").matches(tensor("layers.0.up"))

    def test_a_tied_weight_answers_to_every_name(self):
        tied = tensor("embed.weight", TensorKind.EMBEDDING, aliases=("head.weight",))
        assert Rule(name="head.*").matches(tied)
        assert Rule(name="re:^head").matches(tied)

    def test_a_rule_without_match_is_for_everything(self):
        assert Rule().matches(tensor(kind=TensorKind.OTHER))


class TestRules:
    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"bits": 5}, "bits is 5, expected one of"),
            ({"group_size": 4}, "group_size is 4, expected a multiple of 8"),
            ({"group_size": 100}, "group_size is 100"),
            ({"group_size": -8}, "group_size is -8"),
            ({"name": "re:("}, "no regular expression"),
            ({"adjustable": frozenset({"colour"})}, "colour"),
        ],
    )
    def test_what_cannot_mean_anything_is_refused(self, fields, reason):
        with pytest.raises(RecipeError, match=reason):
            Rule(**fields)

    def test_group_size_zero_is_one_scale_per_row(self):
        assert Rule(group_size=0, bits=4).group_size == 0


class TestFiles:
    def test_reads_the_example_of_the_manual(self, tmp_path):
        recipe = recipe_file(
            tmp_path,
            """
            [[rule]]
            match = { kind = "embedding" }
            bits = 4
            group_size = 32

            [[rule]]
            match = { name = "re:.*down_proj$" }
            pattern = "2:4"
            method = "admm"
            bits = 4

            [[rule]]
            match = { kind = "linear" }
            sparsity = 0.5
            bits = 4
            """,
        )
        embedding, down, linear = recipe.rules
        assert (embedding.kind, embedding.group_size) == (TensorKind.EMBEDDING, 32)
        assert (down.name, down.pattern, down.method) == (
            "re:.*down_proj$", Pattern(keep=2, of=4), "admm",
        )  # fmt: skip
        assert linear.pattern == Pattern(sparsity=0.5)

    def test_keys_left_out_are_open_to_the_planner(self, tmp_path):
        recipe = recipe_file(
            tmp_path, "[[rule]]\nbits = 4\n[[rule]]\npattern = '2:4'\n[[rule]]\nadjustable = []\n"
        )
        assert recipe.rules[0].adjustable == {"group_size", "sparsity"}
        assert recipe.rules[1].adjustable == {"bits", "group_size"}
        assert recipe.rules[2].adjustable == set()

    def test_rules_made_in_python_are_closed(self):
        assert Rule(bits=4).adjustable == set()
        assert Rule(adjustable=ADJUSTABLE).adjustable == {"bits", "group_size", "sparsity"}

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("rule = 3", "only .*rule.* tables"),
            ("[other]\nbits = 4", "only .*rule.* tables, found .'other'"),
            ("[[rule]]\nbit = 4", "rule 1: unknown key 'bit'"),
            ("[[rule]]\nbits = 4\n[[rule]]\nmatch = { shape = 3 }", "rule 2: unknown key 'shape'"),
            ("[[rule]]\nmatch = { kind = 'dense' }", "'dense', expected one of linear"),
            ("[[rule]]\nmatch = 4", "rule 1: match is 4, expected"),
            (f"[[rule]]\nsparsity = {10**400}", "rule 1: int too large"),
            ("[[rule]]\nsparsity = 1.5", "sparsity is 1.5"),
            ("[[rule]]\nsparsity = 'half'", "could not convert"),
            ("[[rule]]\npattern = '2:4'\nsparsity = 0.9", "fixes the sparsity"),
            ("[[rule]]\nbits = '4'", "bits is 4"),
            ("[[rule]]\nkind = 'linear'", "unknown key 'kind'"),
            ("[[rule]", "is not TOML"),
        ],
    )
    def test_a_wrong_file_says_where_and_why(self, tmp_path, text, reason):
        with pytest.raises(RecipeError, match=reason):
            recipe_file(tmp_path, text)

    def test_a_missing_file_and_binary_are_refused(self, tmp_path):
        with pytest.raises(RecipeError, match="cannot read the recipe"):
            Recipe.from_toml(tmp_path / "none.toml")
        (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(RecipeError, match="is not TOML"):
            Recipe.from_toml(tmp_path / "bytes.toml")

    def test_json_reads_back(self):
        recipe = Recipe(
            (
                Rule(kind=TensorKind.EMBEDDING, bits=4, group_size=32, quantizer="rtn"),
                Rule(name="*.up", pattern=Pattern(keep=2, of=4), adjustable=frozenset({"bits"})),
                Rule(pattern=Pattern(sparsity=0.3, block=(16, 1)), method="wanda"),
            )
        )
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


class TestSchemes:
    def test_a_recipe_file_says_scheme_and_rows(self, tmp_path):
        recipe = recipe_file(
            tmp_path,
            """
            [[rule]]
            scheme = "table"
            bits = 4
            table_rows = 16
            [[rule]]
            scheme = "asymmetric"
            bits = 3
            group_size = "channel"
            """,
        )
        table, shifted = recipe.rules
        assert (table.scheme, table.bits, table.table_rows) == ("table", 4, 16)
        assert (shifted.scheme, shifted.bits, shifted.group_size) == ("asymmetric", 3, 0)
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe

    def test_symmetric_rules_look_as_they_always_did(self):
        assert not {"scheme", "table_rows"} & set(Recipe((Rule(bits=4),)).to_json()[0])

    def test_minus_one_is_one_scale_per_row(self):
        assert Rule(bits=4, group_size=-1) == Rule(bits=4, group_size=0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"scheme": "affine", "bits": 4}, "scheme is 'affine', expected one of symmetric"),
            ({"scheme": "table", "bits": 8}, r"table with 8 bits, expected .* \(2, 3, 4\)"),
            ({"scheme": "asymmetric"}, "asymmetric with 16 bits"),
            ({"table_rows": 16, "bits": 4}, "table_rows is 16 with scheme symmetric"),
            ({"scheme": "table", "bits": 4, "table_rows": -1}, "table_rows is -1"),
        ],
    )
    def test_contradictions_are_refused(self, options, message):
        with pytest.raises(RecipeError, match=message):
            Rule(**options)

    def test_a_table_with_a_group_size_is_refused(self, tmp_path):
        with pytest.raises(RecipeError, match="rule 1: a table has no group_size"):
            recipe_file(tmp_path, '[[rule]]\nscheme = "table"\nbits = 4\ngroup_size = 64\n')
