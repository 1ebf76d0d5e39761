"""What the command lines in ``tools/`` share."""

from mmefficientmod.cli.arguments import (
    add_data_argument,
    add_fast_linear_argument,
    add_matmul_argument,
    add_run_arguments,
    add_threads_argument,
    add_trust_argument,
    config_arguments,
    load_chosen_config,
    load_run_config,
    tool_parser,
)
from mmefficientmod.cli.errors import user_message
from mmefficientmod.cli.main import remove_if_failed, run
from mmefficientmod.config.toolbox import import_toolbox

__all__ = [
    'add_data_argument',
    'add_fast_linear_argument',
    'add_matmul_argument',
    'add_run_arguments',
    'add_threads_argument',
    'add_trust_argument',
    'config_arguments',
    'import_toolbox',
    'load_chosen_config',
    'load_run_config',
    'remove_if_failed',
    'run',
    'tool_parser',
    'user_message',
]
