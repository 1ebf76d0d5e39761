"""Which errors are a user's to correct, and what to tell them."""

from __future__ import annotations

import traceback

from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.config.nodes import ConfigError, type_name
from mmefficientmod.datasets import DataError
from mmefficientmod.engine.distributed import failure_of_another
from mmefficientmod.engine.finite import TrainingError
from mmefficientmod.messages import shorten

# Errors that the package raises for users.
USER_ERRORS = (CheckpointError, ConfigError, DataError, TrainingError)
# The module of MMEngine that calls the class that a dict of a config names.
REGISTRY = 'mmengine.registry.build_functions'
# The module of MMEngine that builds an optimizer with its wrapper.
OPTIM_BUILDER = 'mmengine.optim.optimizer.builder'
MODELS = 'mmefficientmod.models'


def user_message(error: BaseException | None) -> str | None:
    """The message for a user, or None if the error is not a user's.

    Args:
        error: The error. If it is not a user's, its causes are tried.
    """
    while error is not None:
        if isinstance(error, USER_ERRORS):
            # PyTorch puts the stack trace of a worker process, which ends
            # with the name of the error, before the message.
            return str(error).rpartition(f'{type(error).__name__}: ')[2]
        waiting = failure_of_another(error)
        if waiting:
            return waiting
        if is_config_mistake(error):
            # The text of a KeyError has quotes around its message.
            message = error.args[0] if isinstance(error, KeyError) else error
            return f'{message} (--traceback shows where)'
        mistake = optimizer_mistake(error)
        if mistake:
            return f'{mistake} (--traceback shows where)'
        error = error.__cause__
    return None


def is_config_mistake(error: BaseException) -> bool:
    """Whether a dict of a config cannot be built into an object.

    This is so for two kinds of errors, which are told by the function that
    raised them:

    - MMEngine's registry does not know the type, or Python refuses the call
      because the class has no such argument or one is missing.
    - A constructor of one of our models raises ``ValueError``, as it does for
      an argument with a wrong value.

    Any other error in a constructor, and every error of a model that runs,
    is a bug.

    Args:
        error: The error, as it was caught.
    """
    modules = []
    functions = []
    for frame, _ in traceback.walk_tb(error.__traceback__):
        modules.append(frame.f_globals.get('__name__', ''))
        functions.append(frame.f_code.co_name)
    if REGISTRY not in modules:
        return False
    called = len(modules) - modules[::-1].index(REGISTRY)
    if called == len(modules):  # the registry itself, or its call
        return isinstance(error, (KeyError, TypeError))
    return (
        isinstance(error, ValueError)
        and functions[called] == '__init__'
        and all(name.startswith(MODELS) for name in modules[called:])
    )


def optimizer_mistake(error: BaseException) -> str | None:
    """What is wrong with the dict ``optim_wrapper`` of a config.

    MMEngine and PyTorch check the arguments of optimizers while they build
    them, with errors of many types.

    Args:
        error: The error, as it was caught.

    Returns:
        A sentence without its end; None for an error that was not raised
        while an optimizer was built.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [frame.f_globals.get('__name__', '') for frame in frames]
    if OPTIM_BUILDER not in modules or not isinstance(
        error,
        (AssertionError, AttributeError, LookupError, TypeError, ValueError),
    ):
        return None
    name = 'optim_wrapper'
    for frame in frames:
        optimizer = frame.f_locals.get('optimizer_cfg')
        if type_name(optimizer):
            name = f'the optimizer {type_name(optimizer)} of optim_wrapper'
    # What the constructor asks Python's `inspect` for an unknown type.
    unknown = str(error) == 'None is not a callable object'
    reason = (
        'no such type is registered'
        if unknown
        else f'{type(error).__name__}: {shorten(str(error))}'
    )
    return f'{name} cannot be built: {reason}'
