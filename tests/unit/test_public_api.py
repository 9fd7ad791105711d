"""The public list: a change here is a change for every reader, so it is made twice on purpose."""

import importlib.metadata
import inspect

import pytest

import sparse_mu

REVIEWED = """
ApplyFn Batch DivergedWarning Hyper LossAux LossFn Model Pruned Stats UnlearnBatch UnlearnState
Unlearner classification convolution_kernels evaluate finetune fisher_forgetting forget
gradient_ascent hyper_parameters influence_unlearning l1_prox l1_sparse magnitude_masks masks
matrices omp proximal pruning retrain scores sgd
""".split()


def test_the_public_names_are_the_reviewed_ones():
    assert sparse_mu.__all__ == REVIEWED
    assert len(set(REVIEWED)) == len(REVIEWED)


@pytest.mark.parametrize("name", REVIEWED)
def test_every_public_name_exists_and_is_described(name):
    thing = getattr(sparse_mu, name)
    assert inspect.getdoc(thing)
    own_words = thing.__doc__
    assert own_words and not own_words.startswith(f"{name}("), "namedtuple's own words"


@pytest.mark.parametrize("name", REVIEWED)
def test_no_public_function_takes_keywords_it_does_not_name(name):
    thing = getattr(sparse_mu, name)
    if inspect.isfunction(thing):
        kinds = {parameter.kind for parameter in inspect.signature(thing).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds


def test_the_version_is_the_installed_one():
    assert sparse_mu.__version__ == importlib.metadata.version("sparse_mu")
