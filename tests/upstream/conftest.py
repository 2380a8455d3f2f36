"""These suites are run as their projects run them, by tests in tests/jobs; pytest leaves them."""

collect_ignore_glob = ["*"]
