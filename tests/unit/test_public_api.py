"""The public list: a change here is a change for every reader, so it is made twice on purpose."""

import importlib.metadata
import inspect

import pytest

import sparse_mu

REVIEWED = """
ApplyFn Batch Difference DivergedWarning Given Hyper LossAux LossFn Model NotConvergedWarning
Projected Pruned Regrow Rescored Rewind Stats UnlearnBatch UnlearnState Unlearner Unpruned bounds
classification convolution_kernels curvature evaluate finetune finetune_and_prune
fisher_forgetting fisher_gaussian forget gradient_ascent gradient_sum grasp_masks hyper_parameters
imp influence_direction influence_unlearning l1_prox l1_sparse magnitude_masks mask_bounds masks
matrices negative_gradient omp proximal pruning random_label random_masks refresh_statistics
retrain salun scores scrub scrub_passes sgd snip_masks synflow_masks topology training_path units
unprune
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
