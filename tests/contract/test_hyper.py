"""Hyper-parameters are leaves: nothing is traced again for another value."""

import jax
import tiny_network as tiny
from comparing import differs
from unlearner_cases import FIRST_ORDER, HYPER, method, run_fit

from sparse_mu import masks, unlearn
from sparse_mu.execution import single
from sparse_mu.losses import classification
from sparse_mu.optimiser import hyper_parameters
from sparse_mu.proximal import GAMMA_SCHEDULES
from sparse_mu.training import fit


def counting_loss():
    """A loss function of its own (no cache knows it) and how often Python ran it."""
    inner, calls = classification(tiny.apply_fn), []

    def loss_fn(params, net_state, batch, key):
        calls.append(None)
        return inner(params, net_state, batch, key)

    return loss_fn, calls


def test_first_order_methods_share_one_step_body():
    bodies = {method(name).step.on_batch for name in FIRST_ORDER}
    assert len(bodies) == 1


def test_changing_a_hyper_parameter_does_not_trace_again():
    loss_fn, calls = counting_loss()
    unlearner = unlearn.finetune(loss_fn, hyper=hyper_parameters())
    model = tiny.draw(jax.random.key(0))
    state = unlearner.init(model, masks.ones_like(model.params), jax.random.key(0))
    step, batch = jax.jit(unlearner.step), tiny.both_sets(0)
    moved = []
    for hyper in (
        hyper_parameters(learning_rate=0.1),
        hyper_parameters(learning_rate=0.2),
        hyper_parameters(learning_rate=0.1, sign=-1.0),
        hyper_parameters(learning_rate=0.1, gamma=0.5, gamma_schedule=2),
        hyper_parameters(learning_rate=0.1, lr_schedule=2, epochs=3, warmup_epochs=1),
    ):
        moved.append(step(state._replace(hyper=hyper), batch)[0].model.params)
    assert len(calls) == 1
    assert all(differs(moved[0], other) for other in moved[1:4])  # and the leaves are read


def test_every_first_order_method_and_length_is_one_trace_through_fit():
    loss_fn, calls = counting_loss()
    model, dense, keys, trials = tiny.batched_trials(2)
    sparse = jax.vmap(tiny.half_masks)(model)
    execution, data = single(), tiny.dataset()
    made = [
        unlearn.finetune(loss_fn, hyper=hyper_parameters(**HYPER)),
        unlearn.gradient_ascent(loss_fn, hyper=hyper_parameters(learning_rate=1e-3)),
        unlearn.retrain(loss_fn, reinit=tiny.draw, hyper=hyper_parameters(learning_rate=0.2)),
        *(
            unlearn.l1_sparse(loss_fn, schedule=schedule, hyper=hyper_parameters(**HYPER))
            for schedule in GAMMA_SCHEDULES
        ),
    ]
    for epochs, unlearner in enumerate(made, start=1):
        for kept in (dense, sparse):
            fit(
                unlearner, model, kept, keys, trials, data,
                batch_size=8, epochs=epochs, execution=execution,
            )  # fmt: skip
    assert len(calls) == 1


def test_python_numbers_and_arrays_as_hyper_parameters_are_one_trace_through_fit():
    loss_fn, calls = counting_loss()
    hyper = hyper_parameters(**HYPER)
    for given in (hyper, hyper._replace(learning_rate=0.05), hyper._replace(momentum=0.5)):
        run_fit(unlearn.finetune(loss_fn, hyper=given), tiny.batched_trials(1), single())
    assert len(calls) == 1
