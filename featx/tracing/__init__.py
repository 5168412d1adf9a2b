"""Analysis of models by running them: traces of module calls and operations, dependencies, layouts, sizes, pruning."""
