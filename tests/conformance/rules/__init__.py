"""The rules, by topic: each public function of a module is one, and the first line of its docstring says it."""
