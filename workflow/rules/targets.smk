# Names that a user may ask for: every task (its comparison) and every family (all runs of its methods).

for _task in [comparison.task for comparison in PROJECT.comparisons]:

    rule:
        name:
            _task
        input:
            PROJECT.page(_task),
        localrule: True


for _family in CATALOGUE.families():
    if PROJECT.family_targets(_family):

        rule:
            name:
                _family
            input:
                PROJECT.family_targets(_family),
            localrule: True
