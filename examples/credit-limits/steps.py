"""A step in Python: it is given the company's transaction, and says what it found."""


def count_customers(step):
    [(count,)] = step.execute(f'select count(*) from {step.table("Customer")} where "Blocked" = ?', [0])
    step.note(f"{count} customers of {step.company} may buy for {step.options['raise']} more")
