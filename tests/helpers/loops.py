"""Workloads whose instructions are counted; they import nothing."""


def loop(length):
    def run(n):
        for _ in range(n):
            for _ in range(length):
                pass

    return run


def ten():
    return loop(10)


def thirty():
    print("what it prints is not taken for a count")
    print("nor does a line that it only begins hide one", end="")
    return loop(30)


def fifty():
    return loop(50)


def failing():
    def run(n):
        raise ZeroDivisionError("not today")

    return run
