"""``python -m mmefficientmod``: the environment, for a bug report."""

from mmefficientmod.environment import bug_report

if __name__ == '__main__':
    print(bug_report())
