"""Who computes where: a master, its workers, the messages between them. No word of cryo-EM."""
