"""The reverse process: schedules of visits, its steps, and the samplers made of them."""
