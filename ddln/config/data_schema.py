"""The table `problem.data` of a configuration: random data, data sets of scikit-learn, files."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from ddln.config._table import SHAPE, Seed, Table, Whole


class _RandomDataConfig(Table):
    samples: Whole = Field(ge=1, description="rows of X", json_schema_extra=SHAPE)
    features: Whole = Field(
        ge=1, description="columns of X: the width of the network", json_schema_extra=SHAPE
    )
    design: Literal["normal", "rademacher"] = Field(
        default="normal",
        description="distribution of the entries of X: N(0, 1), or ±1 with equal probability",
    )
    seed: Seed = 0


class GaussianDataConfig(_RandomDataConfig):
    """Independent features, distributed by `design`; independent standard normal targets."""

    kind: Literal["gaussian"]


class _PlantedDataConfig(_RandomDataConfig):
    nonzeros: Whole = Field(ge=0, description="nonzero entries of θ*")

    @model_validator(mode="after")
    def _nonzeros_fit(self):
        if self.nonzeros > self.features:
            raise ValueError(
                f"nonzeros must be ≤ features, got {self.nonzeros} and {self.features}"
            )
        return self


class SparseDataConfig(_PlantedDataConfig):
    """Independent features; targets Xθ* + noise · N(0, 1), with θ* = ±1 on a few entries."""

    kind: Literal["sparse"]
    noise: float = Field(default=0.0, ge=0, description="standard deviation of the noise")


class ClassificationDataConfig(_PlantedDataConfig):
    """Independent features; labels ±1, the signs of Xθ* + noise · N(0, 1)."""

    kind: Literal["classification"]
    noise: float = Field(default=0.0, ge=0, description="standard deviation of the noise")


class CountsDataConfig(_PlantedDataConfig):
    """Independent features; Poisson targets with mean exp(strength · Xθ*)."""

    kind: Literal["counts"]
    strength: float = Field(default=0.5, description="factor of Xθ*")


class FileDataConfig(Table):
    """A data file: a table of text (also gzip, bzip2 or xz), Parquet, LIBSVM, or arrays in NPZ,
    HDF5, Zarr or MATLAB files, with the true parameter θ* as `truth` if there is one."""

    kind: Literal["file"]
    path: str = Field(description="path, relative to the configuration file")
    target: str = Field(default="target", description="the column to fit, unless in an array file")
    features: tuple[str, ...] | None = Field(
        default=None, description="columns to fit with; by default, all others"
    )
    standardise: bool | Literal["features", "all"] = Field(
        default=False,
        description="scale columns to mean 0 and standard deviation 1 over the rows to train on: "
        "`features`, or `all` (the same as true), with the target",
    )
    format: Literal["csv", "npz", "hdf5", "zarr", "mat", "parquet", "svmlight"] | None = Field(
        default=None, description="of the file; by default, what its suffix says, or text"
    )
    separator: Literal[",", "\t", ";", "|", " "] | None = Field(
        default=None,
        description="between the cells of a text file, a blank for any number of spaces and tabs; "
        "by default, found from its first lines, as are the four keys that follow",
    )
    decimal: Literal[".", ","] | None = Field(default=None, description="decimal mark")
    encoding: str | None = Field(default=None, description="such as `latin-1`")
    header: bool | None = Field(
        default=None, description="whether the first row names the columns; else x1, x2, …"
    )
    comment: str | None = Field(
        default=None, min_length=1, description="mark at the beginning of lines to leave out"
    )
    skip: Whole = Field(
        default=0, ge=0, description="lines to leave out at the top", json_schema_extra=SHAPE
    )
    ignore: tuple[str, ...] = Field(default=(), description="columns to leave out")
    missing: Literal["refuse", "drop", "mean"] = Field(
        default="refuse",
        description="what becomes of a row with a missing value (empty, NA, ?, …): `mean` puts the "
        "mean of the column over the rows to train on in its place",
    )
    categories: tuple[str, ...] | Literal["text"] = Field(
        default=(),
        description="columns of words, `text` for all of them: each becomes one column of 0 and 1 "
        "for each of its words",
    )
    drop_first: bool = Field(
        default=False, description="leave out the column of the first word of each category"
    )
    labels: tuple[str | int | float, ...] | None = Field(
        default=None,
        min_length=2,
        description="targets that become −1 and 1, in this order; by default, in sorted order, if "
        "there are two words, or 0 and 1. For multinomial loss, those that become 0, 1, 2, …",
    )
    weights: str | None = Field(
        default=None, description="column or array of the weights of the samples in the loss"
    )
    exposure: str | None = Field(
        default=None,
        description="column or array of exposures e_i > 0: the Poisson mean is e_i exp(x_iᵀθ)",
    )
    features_array: str = Field(default="features", description="array of shape (n, d)")
    targets_array: str = Field(default="targets", description="array of shape (n,) or (n, 1)")
    intercept: bool = Field(default=False, description="append a column of ones")
    test: float | None = Field(
        default=None, gt=0, lt=1, description="share of rows held out", json_schema_extra=SHAPE
    )
    test_seed: Whole = Field(
        default=0, ge=0, description="seed of their choice", json_schema_extra=SHAPE
    )

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Only the keys that older configurations have, and those that differ from the defaults: a
        new key must not change the digest of an older configuration."""
        first = ("kind", "path", "target", "features", "standardise")
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {
            name: value
            for name, value in write(self).items()
            if name in first or getattr(self, name) != defaults[name]
        }


class DiabetesDataConfig(Table):
    """The diabetes data of scikit-learn: 442 patients, 10 measurements."""

    kind: Literal["diabetes"]
    quadratic: bool = Field(
        default=False,
        description="add products and squares of the measurements, 64 columns in all; the square "
        "of `sex`, a binary variable, is left out",
    )
    standardise: bool = Field(
        default=True,
        description="scale columns and target to mean 0 and standard deviation 1",
    )


Digit = Annotated[int, Field(ge=0, le=9)]


class DigitsDataConfig(Table):
    """Two of scikit-learn's handwritten digits: 64 pixels from 0 to 1, labels ±1."""

    kind: Literal["digits"]
    positive: Digit = Field(description="the digit with label 1", json_schema_extra=SHAPE)
    negative: Digit = Field(description="the digit with label −1", json_schema_extra=SHAPE)

    @model_validator(mode="after")
    def _digits_differ(self):
        if self.positive == self.negative:
            raise ValueError(f"positive and negative must differ, got {self.positive} twice")
        return self


DataConfig = (
    GaussianDataConfig
    | SparseDataConfig
    | ClassificationDataConfig
    | CountsDataConfig
    | FileDataConfig
    | DiabetesDataConfig
    | DigitsDataConfig
)
