"""How an instance is made: one module a runtime, and the rules of what each can honour."""
