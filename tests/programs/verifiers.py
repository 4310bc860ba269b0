"""Verifiers for models that know nothing."""


def has_first_digit(response, prompt):
    return response.find(prompt.answer[0]) >= 0
