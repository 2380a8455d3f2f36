"""IMP.parallel's interface: a manager, workers that connect back, contexts of tasks."""
