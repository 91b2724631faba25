"""Which worker runs which model: a pure planner, and one leader among the gateways that carries its plan out."""
